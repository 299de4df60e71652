#include "launch/cluster/process.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "engine/base/status.h"

namespace millrace {
namespace {

using std::chrono::seconds;

Bytes bytes_of(std::string_view text) { return Bytes(text.begin(), text.end()); }

ProcessConfig shell(const std::string& script) { return {.argv = {"sh", "-c", script}}; }

TEST(Process, ReadsItsInputUntilTheEnd) {
  const std::string path = testing::TempDir() + "process_input";
  ProcessConfig config = shell("cat > " + path);
  config.input = bytes_of("ticket");
  Process process(config);
  ASSERT_TRUE(process.wait_for(seconds(60)));
  EXPECT_EQ(describe_exit(*process.poll()), "exited with code 0");
  std::string content;
  std::getline(std::ifstream(path), content);
  EXPECT_EQ(content, "ticket");
}

TEST(Process, TellsItsEnd) {
  Process failing(shell("exit 3"));
  ASSERT_TRUE(failing.wait_for(seconds(60)));
  EXPECT_EQ(describe_exit(*failing.poll()), "exited with code 3");
  Process killed(shell("kill -9 $$"));
  ASSERT_TRUE(killed.wait_for(seconds(60)));
  EXPECT_EQ(describe_exit(*killed.poll()), "was killed by signal 9 (Killed)");
}

TEST(Process, NamesAProgramThatIsNotThere) {
  try {
    Process process({.argv = {"millrace-no-such-program"}});
    FAIL() << "started";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()),
        "cannot start millrace-no-such-program: No such file or directory");
  }
}

TEST(Process, HasOurVariables) {
  setenv("MILLRACE_PROCESS_TEST", "kept", 1);
  Process process(shell("test $MILLRACE_PROCESS_TEST = kept"));
  ASSERT_TRUE(process.wait_for(seconds(60)));
  EXPECT_EQ(*process.poll(), 0);
}

TEST(Process, InheritsNoFileOfOurs) {
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);  // without O_CLOEXEC, as libraries open sockets
  Process process(shell("test ! -e /proc/self/fd/" + std::to_string(fds[1])));
  ASSERT_TRUE(process.wait_for(seconds(60)));
  EXPECT_EQ(*process.poll(), 0);
  close(fds[0]);
  close(fds[1]);
}

TEST(Process, EndsWithItsOwner) {
  pid_t pid = 0;
  {
    Process process(shell("exec sleep 1000"));
    pid = process.pid();
    EXPECT_FALSE(process.poll());
  }
  EXPECT_EQ(kill(pid, 0), -1);
}

// A process that dies without a word, SIGKILLed, takes its child along.
TEST(Process, EndsWhenItsParentIsKilled) {
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  const pid_t parent = fork();
  if (parent == 0) {
    Process process(shell("exec sleep 1000"));
    const pid_t child = process.pid();
    [[maybe_unused]] const auto written = write(fds[1], &child, sizeof(child));
    pause();
  }
  pid_t child = 0;
  ASSERT_EQ(read(fds[0], &child, sizeof(child)), ssize_t{sizeof(child)});
  ASSERT_EQ(kill(parent, SIGKILL), 0);
  waitpid(parent, nullptr, 0);
  // Nobody here may wait for it, so its end is looked for; this hangs if it lives on.
  while (true) {
    std::ifstream stat("/proc/" + std::to_string(child) + "/stat");
    std::string text;
    if (!std::getline(stat, text) || text.find(") Z") != std::string::npos) break;
    usleep(10'000);
  }
  close(fds[0]);
  close(fds[1]);
}

}  // namespace
}  // namespace millrace
