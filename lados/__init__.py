"""Train, evaluate and serve classifiers for aerial photographs of oil spills, from notebooks."""

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING: # for editors and type checkers; what is used is loaded when it is used
    from .client import Client
    from .data.importers import import_dataset
    from .model.batches import Dataset
    from .model.interactive import learner
    from .public import audit, evaluate, export, label_set, load, split, train

__all__ = ["Client", "Dataset", "audit", "evaluate", "export", "import_dataset", "label_set", "learner", "load", "split", "train"]


def __getattr__(name: str) -> Any:
    """One of the names in `__all__`, loaded when it is first asked for; `nbs/07_public.ipynb` says what each does."""
    if name not in __all__:
        raise AttributeError(f"module 'lados' has no attribute '{name}'")
    from .public import public_name

    globals()[name] = found = public_name(name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
