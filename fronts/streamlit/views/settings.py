"""Settings: where the service is, the key, and the language. They are kept for this browser."""

import parts
import streamlit as st
from lados_fronts.service import Place
from lados_fronts.session import session_of
from lados_fronts.texts import LANGUAGES

here = parts.visit_again()
t, keep = here.t, here.keep


def put_language() -> None:
    "Keep the language."
    keep.set(language=st.session_state.language)


st.segmented_control(t("Language"), list(LANGUAGES), default=t.language, format_func=LANGUAGES.get, key="language", required=True, on_change=put_language)
given = Place.from_environment()
with st.form("service"):
    url = st.text_input(t("Address of the service"), keep.setting("url") or given.url)
    key = st.text_input(t("Key"), keep.setting("key"), type="password", placeholder=t("in use: the one with which this page was started") if given.key else "", help=t("What API_KEY says where the service runs. It opens promotion, everybody's jobs, "
                                                                              "corrections and cancelling."))
    if st.form_submit_button(t("Save"), type="primary"):
        keep.set(url=url.strip().rstrip("/"), key=key.strip())
        st.session_state.saved = True
        st.rerun()
if st.session_state.pop("saved", False):
    session = session_of(keep)

    async def looked() -> bool:
        await session.look()
        return True

    if parts.ask(here, looked()):
        st.success(t("Saved. The service answers: {model}.", model=session.served.model or t("no model yet")))
st.caption(t("Light or dark follows the system. Images and answers are kept on the machine that serves this page, "
             "for this browser only, and are forgotten after 30 days without a visit."))
if st.button(t("Forget everything that is kept for this browser"), type="tertiary"):
    keep.clear()
    st.rerun()
