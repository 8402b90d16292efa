"""The Streamlit front end: five pages over the HTTP service. `lados app streamlit` starts it."""

import sys
from pathlib import Path

import streamlit as st

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import parts  # noqa: E402

st.set_page_config(page_title="lados", page_icon=str(HERE / "logo.svg"), layout="wide")
t = parts.language_now()
names = {"classify": (t("Classify"), ":material/image_search:"), "flight": (t("Flight"), ":material/flight:"),
         "jobs": (t("Jobs"), ":material/checklist:"), "service": (t("Service"), ":material/monitor_heart:"),
         "settings": (t("Settings"), ":material/settings:")}
# their folder is not called `pages`, which Streamlit would serve by itself to the first visitor whose address names one
pages = [st.Page(HERE / "views" / f"{name}.py", title=title, icon=icon, url_path=name, default=name == "classify")
         for name, (title, icon) in names.items()]
page = st.navigation(pages, position="top") # first of all: until the browser has said who it is, the run stops below, and an address must lead to its page
here = parts.visit()
parts.style(here)
parts.header(here)
page.run()
