"""check_rooms.py must fail on a bad tree; each test makes one that is bad in one way."""

import contextlib
import io
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import check_rooms  # noqa: E402
import rooms_picture  # noqa: E402
import source_shape  # noqa: E402

GOOD = {
    "engine/base/hash.h": "int hash();\n",
    "engine/base/CMakeLists.txt": "millrace_room(base SOURCES hash.cc)\n",
    "engine/core/tensor.h": '#include "engine/base/hash.h"\n',
    "engine/core/CMakeLists.txt": "millrace_room(core SOURCES a.cc DEPS base)\n",
    "engine/protocol/step.h": '#include "engine/base/hash.h"\n',
    "engine/protocol/CMakeLists.txt": "millrace_room(protocol SOURCES a.cc DEPS base LIBS X::y)\n",
    "scheduler/scheduler.h": '#include "engine/protocol/step.h"\n#include "engine/base/hash.h"\n',
    "scheduler/CMakeLists.txt": "millrace_room(scheduler\n  SOURCES s.cc  # one\n  DEPS protocol)\n",
}


def check(changes):
    """The errors and warnings of the good tree with some files changed."""
    with tempfile.TemporaryDirectory() as folder:
        for path, text in {**GOOD, **changes}.items():
            file = Path(folder) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        tree, _, _ = check_rooms.check(folder)
        return tree.errors, tree.warnings


class Layers(unittest.TestCase):
    def assert_one_error(self, changes, *words):
        errors, _ = check(changes)
        self.assertEqual(len(errors), 1, errors)
        for word in words:
            self.assertIn(word, errors[0])

    def test_good_tree_passes(self):
        self.assertEqual(check({}), ([], []))

    def test_upward_include_fails(self):
        errors, _ = check({"engine/base/hash.h": '#include "engine/core/other.h"\n'})
        self.assertTrue(any("upward" in e and "engine/base/hash.h:1" in e for e in errors), errors)

    def test_sideways_include_fails(self):
        errors, _ = check({"engine/core/tensor.h": '#include "engine/protocol/step.h"\n'})
        self.assertTrue(any("sideways" in e for e in errors), errors)

    def test_worker_and_coordinator_do_not_see_each_other(self):
        errors, _ = check({"engine/worker/worker.h": '#include "engine/coordinator/c.h"\n'})
        self.assertTrue(any("sideways" in e for e in errors), errors)

    def test_order_inside_the_top_layer(self):
        errors, _ = check({"launch/gateway/server.h": '#include "launch/cli/main.h"\n'})
        self.assertTrue(any("upward" in e for e in errors), errors)
        self.assertEqual(check({"launch/gateway/server.h": '#include "launch/api/openai.h"\n'})[0], [])

    def test_cycle_inside_a_room_fails(self):
        self.assert_one_error({"engine/base/a.h": '#include "engine/base/b.h"\n',
                               "engine/base/b.h": '#include "engine/base/a.h"\n'},
                              "include cycle", "engine/base/a.h -> engine/base/b.h")

    def test_product_may_not_include_tests(self):
        self.assert_one_error({"engine/base/a.h": '#include "tests/engine/base/x.h"\n'}, "tests/")

    def test_include_relative_to_the_file_fails(self):
        self.assert_one_error({"engine/base/a.h": '#include "hash.h"\n'}, "project's root")

    def test_folder_that_is_no_room_fails(self):
        self.assert_one_error({"engine/attic/a.h": "int a;\n"}, "engine/attic/a.h", "no room")

    def test_missing_link_fails(self):
        self.assert_one_error({"scheduler/CMakeLists.txt": "millrace_room(scheduler SOURCES s.cc DEPS base)\n"},
                              "scheduler/CMakeLists.txt", "engine/protocol")

    def test_link_upward_fails(self):
        self.assert_one_error({"engine/base/CMakeLists.txt": "millrace_room(base SOURCES h.cc DEPS core)\n"},
                              "links engine/core", "not below")

    def test_sources_without_cmake_fail(self):
        self.assert_one_error({"comm/a.cc": "int a;\n"}, "comm", "no CMakeLists.txt")


class Sizes(unittest.TestCase):
    def test_long_file(self):
        errors, warnings = check({"engine/base/a.h": "int a;\n" * 401})
        self.assertEqual((len(errors), len(warnings)), (0, 1))
        self.assertIn("401 lines", warnings[0])
        errors, warnings = check({"tests/engine/base/a.cc": "int a;\n" * 601})
        self.assertEqual((len(errors), len(warnings)), (1, 0))

    def test_long_function(self):
        def source(lines):
            return "namespace x {\nvoid f(int a) {\n" + "  g();\n" * (lines - 2) + "}\n}\n"
        self.assertEqual(check({"engine/base/a.cc": source(60)}), ([], []))
        self.assertIn("f has 61 lines", check({"engine/base/a.cc": source(61)})[1][0])
        self.assertIn("f has 101 lines", check({"engine/base/a.cc": source(101)})[0][0])

    def test_long_rust_function(self):
        text = "impl A {\n    fn f(&self) -> [u8; 4] {\n" + "        g();\n" * 120 + "    }\n}\n"
        self.assertIn("f has 122 lines", check({"engine/base/a.rs": text})[0][0])

    def test_long_python_function(self):
        errors, _ = check({"scripts/a.py": "def f():\n" + "    g()\n" * 100})
        self.assertIn("f has 101 lines", errors[0])

    def test_tests_are_counted_apart(self):
        rust = "fn f() {}\n#[cfg(test)]\nmod tests {\n    fn t() {}\n}\n"
        with tempfile.TemporaryDirectory() as folder:
            for path, text in {"engine/text/a.rs": rust, "engine/text/b.cc": "int b;\n",
                               "tests/engine/text/b_test.cc": "int t;\n" * 7}.items():
                file = Path(folder) / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
            self.assertEqual(check_rooms.room_sizes(check_rooms.Tree(folder)),
                             {"engine/text": (2, 2, 11)})

    def test_product_limit(self):
        tree = check_rooms.Tree("/nonexistent")
        check_rooms.check_total(tree, {"a": (1, check_rooms.MAX_PRODUCT_LINES, 0)})
        self.assertEqual(tree.errors, [])
        check_rooms.check_total(tree, {"a": (1, check_rooms.MAX_PRODUCT_LINES + 1, 0)})
        self.assertEqual(len(tree.errors), 1)


class Shapes(unittest.TestCase):
    """source_shape on the C++ that trips brace counters."""

    def names(self, text):
        return [(name, length) for name, _, length in source_shape.functions(text)]

    def test_members_and_initializers(self):
        text = """
struct A final : B<C> {
  explicit A(int x) : a_{x}, b_(x), c_{} {
    g();
  }
  int a_{1};
  std::array<int, 2> t_ = {1, 2};
  bool operator()(int) const noexcept { return true; }
};
A::A() : x_(1) {
}
"""
        self.assertEqual(self.names(text), [("A", 3), ("operator()", 1), ("A::A", 2)])

    def test_strings_comments_and_macros_do_not_count(self):
        text = ('#define M(x) do { \\\n  x; } while (0)\n// void f() {\n'
                'const char* s = "void g() {"; char c = \'{\'; int n = 1\'000;\n'
                'auto r = R"x({{{)x";\nvoid h() {\n}\n')
        self.assertEqual(self.names(text), [("h", 2)])

    def test_templates_lambdas_and_tests(self):
        text = """
template <class T, class U>
auto pick(T t) -> U {
  return [t] { return U{t}; }();
}
enum class E : int { kA, kB };
constexpr E kAll[] = {E::kA};
extern "C" {
void c_function(void) {}
}
TEST(Suite, name) {
}
"""
        self.assertEqual(self.names(text),
                         [("pick", 4), ("c_function", 1), ("TEST(Suite, name)", 2)])


class Picture(unittest.TestCase):
    def test_svg_is_well_formed_and_names_the_rooms(self):
        import xml.etree.ElementTree as xml
        tree, edges, sizes = check_rooms.check(ROOT)
        text = rooms_picture.draw(check_rooms.LAYERS, edges, sizes)
        xml.fromstring(text)
        for room in tree.rooms():
            self.assertIn(f">{room}<", text)

    def test_arrows_leave_out_what_follows_from_others(self):
        edges = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
        self.assertEqual(rooms_picture.direct_edges(edges), [("a", "b"), ("b", "c")])


class Command(unittest.TestCase):
    def test_exit_code_tells(self):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as out:
            file = Path(folder) / "engine/base/a.h"
            file.parent.mkdir(parents=True)
            file.write_text('#include "launch/cli/main.h"\n')
            self.assertEqual(check_rooms.main(["--root", folder]), 1)
            file.write_text("int a;\n")
            self.assertEqual(check_rooms.main(["--root", folder]), 0)
        self.assertIn("error: engine/base/a.h:1", out.getvalue())


if __name__ == "__main__":
    unittest.main()
