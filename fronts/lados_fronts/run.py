"""Start a front end: `python fronts/lados_fronts/run.py streamlit --port 8501`. The command `lados app` does the same."""

import argparse
import os
import sys
from pathlib import Path

FRONTS = Path(__file__).resolve().parents[1]
LIGHT = {"primaryColor": "#0b5fa5", "backgroundColor": "#f4f6f8", "secondaryBackgroundColor": "#ffffff", "textColor": "#16212e",
         "linkColor": "#0b5fa5", "borderColor": "#c6d0da"}
DARK = {"primaryColor": "#7cc0f0", "backgroundColor": "#0e1822", "secondaryBackgroundColor": "#16232f", "textColor": "#e6edf3",
        "linkColor": "#7cc0f0", "borderColor": "#3a4b5c"}
OPTIONS = {"browser.gatherUsageStats": "false", "client.toolbarMode": "minimal", "server.fileWatcherType": "none", "server.maxUploadSize": "2000",
           "theme.baseRadius": "10px", "theme.showWidgetBorder": "true", "client.showErrorDetails": "none"}


def streamlit(host: str, port: int, browser: bool) -> None:
    "Become Streamlit's server."
    themes = {f"theme.{name}.{n}": v for name, theme in (("light", LIGHT), ("dark", DARK)) for n, v in theme.items()}
    options = {**OPTIONS, **themes, "server.address": host, "server.port": str(port), "server.headless": str(not browser).lower()}
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", str(FRONTS / "streamlit" / "app.py"), *flags])


def flet(host: str, port: int, browser: bool) -> None:
    "Become Flet's server, or its window where there is a screen and nobody said where to listen."
    os.environ |= {"FLET_SERVER_IP": host, "FLET_SERVER_PORT": str(port), "FLET_FORCE_WEB_SERVER": str(not browser).lower()}
    os.execv(sys.executable, [sys.executable, str(FRONTS / "flet" / "main.py")])


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a front end of lados.")
    parser.add_argument("front", choices=["streamlit", "flet"])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int)
    parser.add_argument("--browser", action="store_true", help="open it")
    given = parser.parse_args()
    start, port = {"streamlit": (streamlit, 8501), "flet": (flet, 8080)}[given.front]
    start(given.host, given.port or port, given.browser)


if __name__ == "__main__":
    main()
