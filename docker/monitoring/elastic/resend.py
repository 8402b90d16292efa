#!/usr/bin/env python3
"""Sends bulk requests that were refused as a whole once more: what rsyslog's omprog runs, `resend.py URL REJECTED`.

A line of standard input is an entry of omelasticsearch's error file; the answer is `OK`, or why not, and then rsyslog comes back with it. Documents
are created under ids of their own, so what is there already is not there twice. For Python's standard library only.
"""

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path


def send(url: str, body: str) -> dict:
    "Return Elasticsearch's answer to a bulk request."
    request = urllib.request.Request(f"{url}/_bulk", body.encode(), {"Content-Type": "application/x-ndjson"})
    with urllib.request.urlopen(request, timeout=50) as answer:
        return json.load(answer)


def outcome(url: str, entry: dict, rejected: str) -> str: # OK, or why it must be tried again
    "Send the request of an entry, and return what rsyslog is told."
    answer = send(url, entry["request"]["postdata"])
    results = [next(iter(item.values())) for item in answer["items"]]
    if later := [r["status"] for r in results if r["status"] == 429 or r["status"] >= 500]:
        return f"{len(later)} documents were not taken: {later[0]}"
    never = [r for r in results if r["status"] >= 300 and r["status"] != 409]
    with Path(rejected).open("a", encoding="utf-8") as f:
        f.writelines(f"{json.dumps(r)}\n" for r in never)
    return "OK"


def main(url: str, rejected: str) -> None:
    "Answer for each line."
    print("OK", flush=True) # ready
    for line in sys.stdin:
        try:
            told = outcome(url, json.loads(line), rejected)
        except (urllib.error.URLError, OSError) as e:
            told = f"not sent: {e}"
        except (ValueError, KeyError): # no entry of the error file: nobody could send it
            told = "OK"
        print(told, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
