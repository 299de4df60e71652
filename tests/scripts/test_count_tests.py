"""count_tests.py must not take a broken report for a good one."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "count_tests.py"

CTEST = """<testsuite tests="3">
<testcase name="a" status="run"><system-out>[  PASSED  ] 7 tests.</system-out></testcase>
<testcase name="b" status="fail"><failure message=""/><system-out>[  PASSED  ] 3 tests.
[  FAILED  ] 2 tests, listed below:</system-out></testcase>
<testcase name="crashed" status="fail"><failure message=""/><system-out>Segfault</system-out></testcase>
<testcase name="ranks" status="run"><system-out>[  PASSED  ] 4 tests.
[  PASSED  ] 4 tests.</system-out></testcase>
</testsuite>"""

PYTEST = """<testsuites><testsuite><testcase name="a"/><testcase name="b"><failure/></testcase>
<testcase name="c"><error/></testcase><testcase name="d"><skipped/></testcase></testsuite></testsuites>"""


def count(name, text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        if text is not None:
            path.write_text(text)
        done = subprocess.run([sys.executable, SCRIPT, path], capture_output=True, text=True)
        return done.returncode, done.stdout.strip()


class Counts(unittest.TestCase):
    def test_ctest_counts_cases_and_crashes(self):
        self.assertEqual(count("a.xml", CTEST), (0, "14 3"))

    def test_pytest_leaves_out_skipped(self):
        self.assertEqual(count("a.xml", PYTEST), (0, "1 2"))

    def test_cargo(self):
        good = "test result: ok. 5 passed; 0 failed; 0 ignored\ntest result: ok. 1 passed; 0 failed;\n"
        self.assertEqual(count("a.log", good), (0, "6 0"))
        self.assertEqual(count("a.log", "error[E0425]: cannot find value\n"), (0, "0 1"))
        self.assertEqual(count("a.log", "test result: FAILED. 5 passed; 2 failed;\nerror: test failed\n"),
                         (0, "5 2"))

    def test_nothing_is_a_failure(self):
        self.assertEqual(count("a.xml", None)[0], 1)
        self.assertEqual(count("a.xml", "<testsuites/>")[0], 1)


if __name__ == "__main__":
    unittest.main()
