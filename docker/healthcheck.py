"""Exit with 0 if the service here would answer an image now (`/ready`), with 1 and its reason if not."""
import json
import os
import sys
import urllib.error
import urllib.request

url = os.environ.get("LADOS_HEALTH_URL", "http://127.0.0.1:8000/ready")
try:
    with urllib.request.urlopen(url, timeout=4) as answer:
        print(answer.status)
except urllib.error.HTTPError as e:
    try:
        print(json.load(e).get("detail", e))
    except ValueError:
        print(e)
    sys.exit(1)
except OSError as e:
    print(f"{url}: {e}")
    sys.exit(1)
