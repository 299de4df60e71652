// Both ends of a link within one process.
#include <gtest/gtest.h>

#include <boost/asio/io_context.hpp>
#include <thread>

#include "comm/link.h"
#include "engine/protocol/messages.h"

namespace millrace {
namespace {

struct Heard {
  std::vector<Bytes> frames;
  std::vector<std::string> ends;
  LinkEvents events() {
    return {[this](int rank, Bytes frame) {
              EXPECT_EQ(rank, 3);
              frames.push_back(std::move(frame));
            },
        [this](int rank, const std::string& reason) {
          EXPECT_EQ(rank, 3);
          ends.push_back(reason);
        }};
  }
};

Bytes numbered(int i) {
  return make_frame(
      FrameType::kPlan, 1, Bytes(static_cast<size_t>(i % 50), static_cast<uint8_t>(i)));
}

TEST(InProcessLink, FramesGoBothWaysInOrder) {
  boost::asio::io_context io;
  Heard heard;
  InProcessLink link = make_in_process_link(io, 3, heard.events());
  std::thread worker([&] {
    Bytes frame;
    for (int i = 0; i < 1000; ++i) {
      ASSERT_TRUE(link.coordinator_link->receive(&frame));
      EXPECT_EQ(frame, numbered(i));
      EXPECT_TRUE(link.coordinator_link->send(frame));
    }
    EXPECT_FALSE(link.coordinator_link->receive(&frame)) << "closed";
  });
  for (int i = 0; i < 1000; ++i) {
    link.worker_link->send(std::make_shared<const Bytes>(numbered(i)));
  }
  while (heard.frames.size() < 1000) ASSERT_EQ(io.run_one_for(std::chrono::seconds(60)), 1u);
  link.worker_link->close();
  io.poll();
  worker.join();
  link.coordinator_link.reset();
  io.run();
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(heard.frames[static_cast<size_t>(i)], numbered(i));
  EXPECT_EQ(heard.ends, (std::vector<std::string>{"closed by the coordinator"}));
}

TEST(InProcessLink, CloseLetsTheWorkerReadWhatWasSentBefore) {
  boost::asio::io_context io;
  Heard heard;
  InProcessLink link = make_in_process_link(io, 3, heard.events());
  link.worker_link->send(std::make_shared<const Bytes>(numbered(1)));
  link.worker_link->close();
  link.worker_link->send(std::make_shared<const Bytes>(numbered(2)));
  io.poll();
  Bytes frame;
  EXPECT_TRUE(link.coordinator_link->receive(&frame));
  EXPECT_EQ(frame, numbered(1));
  EXPECT_FALSE(link.coordinator_link->receive(&frame));
}

TEST(InProcessLink, TheWorkersEndIsHeardOnceAfterItsFrames) {
  boost::asio::io_context io;
  Heard heard;
  InProcessLink link = make_in_process_link(io, 3, heard.events());
  EXPECT_TRUE(link.coordinator_link->send(numbered(1)));
  link.coordinator_link->shutdown();
  link.coordinator_link.reset();
  io.run();
  link.worker_link->close();
  io.restart();
  io.run();
  EXPECT_EQ(heard.frames.size(), 1u);
  EXPECT_EQ(heard.ends, (std::vector<std::string>{"the worker closed the connection"}));
}

TEST(InProcessLink, ShutdownWakesABlockedReceive) {
  boost::asio::io_context io;
  Heard heard;
  InProcessLink link = make_in_process_link(io, 3, heard.events());
  std::thread worker([&] {
    Bytes frame;
    EXPECT_FALSE(link.coordinator_link->receive(&frame));
  });
  link.coordinator_link->shutdown();
  worker.join();
}

TEST(InProcessLink, ADestroyedLinkCallsNobody) {
  Heard heard;
  std::unique_ptr<CoordinatorLink> worker_side;
  {
    boost::asio::io_context io;
    InProcessLink link = make_in_process_link(io, 3, heard.events());
    EXPECT_TRUE(link.coordinator_link->send(numbered(1)));
    link.worker_link.reset();
    io.run();
    worker_side = std::move(link.coordinator_link);
  }
  Bytes frame;
  EXPECT_FALSE(worker_side->receive(&frame));
  EXPECT_FALSE(worker_side->send(numbered(2)));
  worker_side.reset();  // with no io_context left
  EXPECT_TRUE(heard.frames.empty());
  EXPECT_TRUE(heard.ends.empty());
}

}  // namespace
}  // namespace millrace
