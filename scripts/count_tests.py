#!/usr/bin/env python3
"""Prints "PASSED FAILED" of one runner's report: JUnit XML of pytest, JUnit XML of ctest (whose
entries are GoogleTest programs: their cases are counted), or the output of `cargo test`.
Ends with 1 when the report is missing or no test ran."""

import re
import sys
import xml.etree.ElementTree as xml
from pathlib import Path


def count_program(case):
    """(passed, failed) of one ctest entry. Under mpirun every rank prints: the largest counts."""
    output = case.findtext("system-out") or ""
    passed = max(map(int, re.findall(r"\[  PASSED  \] (\d+) test", output)), default=0)
    failed = max(map(int, re.findall(r"\[  FAILED  \] (\d+) tests?, listed below", output)), default=0)
    if case.get("status") == "run" and case.find("failure") is None:
        return max(passed, 1), failed
    return passed, max(failed, 1)


def count_junit(path):
    passed = failed = 0
    for case in xml.parse(path).getroot().iter("testcase"):
        if case.get("status") is not None:
            good, bad = count_program(case)
            passed, failed = passed + good, failed + bad
        elif case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif case.find("skipped") is None:
            passed += 1
    return passed, failed


def count_cargo(text):
    results = re.findall(r"^test result: \w+\. (\d+) passed; (\d+) failed", text, re.M)
    passed, failed = (sum(int(r[i]) for r in results) for i in (0, 1))
    broken = not results or re.search(r"^error(\[\w+\])?: (?!test failed)", text, re.M)
    return passed, max(failed, 1) if broken else failed


def main():
    path = Path(sys.argv[1])
    if not path.exists():
        return 1
    if path.suffix == ".xml":
        passed, failed = count_junit(path)
    else:
        passed, failed = count_cargo(path.read_text(encoding="utf-8", errors="replace"))
    print(passed, failed)
    return 0 if passed + failed > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
