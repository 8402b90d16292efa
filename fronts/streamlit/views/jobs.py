"""Jobs, live: those handed in from here, and with the key everybody's."""

import parts
import streamlit as st
from lados_fronts.session import LIVE

here = parts.visit_again()
t = here.t


def states() -> dict[str, str]:
    "Return the states in words."
    return {"queued": t("queued"), "running": t("running"), "succeeded": t("succeeded"), "failed": t("failed"), "cancelled": t("cancelled")}


def kinds() -> dict[str, str]:
    "Return the kinds that the service brings in words; those of packages have their own names."
    return {"predict": t("Batch"), "train": t("Training"), "export": t("Export"), "compare": t("Comparison"), "merge": t("Merged dataset"), "audit": t("Audit")}


def job_card(job: dict, mine: bool) -> None:
    "Show a job with what can be done with it."
    with st.container(border=True):
        state = t("stopping") if job.get("cancelling") else states().get(job["state"], job["state"])
        left, right = st.columns([4, 1], vertical_alignment="center")
        units = {"images": t("images"), "epochs": t("epochs")}.get(job.get("unit"), job.get("unit") or "")
        far = t("{done} of {all} {unit}", done=t.number(job.get("done", 0)), all=t.number(job.get("total", 0)), unit=units)
        eta = f", {t('{span} left', span=t.seconds(job['eta_s']))}" if job.get("eta_s") else ""
        kind = kinds().get(job["kind"], job["kind"])
        left.html(f'<p class="l-verdict"><b>{parts.say(kind)}</b> <span class="l-soft">{parts.say(job.get("name") or "")} · {parts.say(job["id"][:8])}</span> '
                  f'<span class="l-pill {job["state"]}">{parts.say(state)}</span></p><p class="l-set">{parts.say(far + eta)} · {parts.say(t.when(job["created"]))}</p>')
        if job["state"] in LIVE:
            left.progress(float(job.get("fraction") or 0))
            if right.button(t("Cancel"), key=f"cancel-{job['id']}-{mine}"):
                parts.ask(here, parts._done(here.session.cancel(job["id"])))
        if job.get("error"):
            left.html(f'<p class="l-error">{parts.say(t.sentence(job["error"]))}</p>')


@st.fragment(run_every=1.5)
def listed() -> None:
    "Show the jobs as they stand."
    mine = here.keep.jobs()
    st.subheader(t("Handed in from here"))
    if not mine:
        st.caption(t("None yet. More than {n} images at once become a job, which goes on when the browser is closed and is found here again.",
                     n=here.served.threshold))
    for job in mine:
        job_card(job, True)
    if not here.session.place.key:
        st.caption(t("With the key, in Settings, everybody's jobs are shown, too."))
        return
    st.subheader(t("Everybody's"))
    found = parts.ask(here, here.session.client.jobs(limit=30)) if not here.session.away else None
    known = {j["id"] for j in mine}
    for job in (found or {}).get("jobs", []):
        if job["id"] not in known:
            job_card(job, False)


listed()
