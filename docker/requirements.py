"""Print what an extra of lados asks for, one requirement a line, from settings.ini alone: a layer that code does not change.

    python3 docker/requirements.py serve jobs
"""
import re
import sys
from pathlib import Path
from types import ModuleType

# setup.py says which extra brings which others; it is read up to the call of setup(), where setuptools need not be
for name, content in (("setuptools", {"find_packages": None, "setup": None}), ("setuptools.command", {}), ("setuptools.command.build_py", {"build_py": object})):
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(content)
HERE = Path(__file__).resolve().parents[1]
names: dict = {"__file__": str(HERE / "setup.py")}
exec(compile((HERE / "setup.py").read_text(encoding="utf-8").partition("\nversion = ")[0], "setup.py", "exec"), names)
wanted = names["words"]("requirements") + [r for extra in sys.argv[1:] for r in names["extras"][extra]]
print("\n".join(sorted({r for r in wanted if not re.match("lados", r)})))
