"Pages in Russian are in step with the English ones: headings, commands, links and figures."

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAIRS = [("README.md", "README.ru.md"), *((f"docs/how-to/{p.name}", f"docs/ru/{p.name}") for p in sorted((ROOT / "docs" / "ru").glob("*.md")))]
ONLY_ENGLISH = {"docs/how-to/front-ends.md": "## An application for Android"} # what follows is for developers
if not (ROOT / "README.ru.md").exists():
    pytest.skip("needs a checkout", allow_module_level=True)


def parts(path) -> dict[str, list[str]]:
    "What both languages share."
    text = (ROOT / path).read_text("utf-8").split(ONLY_ENGLISH.get(path, "\0"))[0]
    code = re.findall(r"^```.*?^```", text, re.M | re.S)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    links = [re.sub(r"^(\.\./how-to/|docs/ru/|docs/how-to/)", "", t) for t in re.findall(r"\]\(([^)]+)\)", prose) if not t.startswith("README")]
    words = re.sub(r"\]\([^)]+\)", "]", prose)
    return {"headings": re.findall(r"^#+(?= )", prose, re.M), "commands": code, "names in backticks": sorted(re.findall(r"`[^`]+`", words)), "links": sorted(links),
            "figures": sorted(re.findall(r"\d[\d.,]*\d|\d", words)), "rows of tables": re.findall(r"^\|", prose, re.M)}


@pytest.mark.parametrize(("english", "russian"), PAIRS)
def test_both_languages_say_the_same(english, russian):
    ours, theirs = parts(english), parts(russian)
    for what, found in ours.items():
        assert found == theirs[what], f"{russian}: {what} differ from {english}"
    cyrillic = len(re.findall("[а-яё]", (ROOT / russian).read_text("utf-8"), re.I))
    assert cyrillic > 400, f"{russian} is not Russian"
