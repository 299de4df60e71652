// The TCP link over loopback: real sockets, a coordinator thread, workers and strangers.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <condition_variable>
#include <future>
#include <map>
#include <mutex>
#include <thread>

#include "comm/handshake.h"
#include "comm/link.h"
#include "engine/base/status.h"
#include "engine/protocol/messages.h"

namespace millrace {
namespace {

using namespace std::chrono_literals;

// A coordinator's thread with its listener; what it hears can be waited for.
class TestCoordinator {
 public:
  explicit TestCoordinator(int num_ranks, bool echo = false)
      : guard_(boost::asio::make_work_guard(io_)), thread_([this] { io_.run(); }) {
    run([&] {
      listener_ = std::make_unique<LinkListener>(io_, "127.0.0.1", key, num_ranks,
          LinkEvents{[this, echo](int rank, Bytes frame) {
                       if (echo) links_.at(rank)->send(std::make_shared<const Bytes>(frame));
                       note([&] { frames.push_back(std::move(frame)); });
                     },
              [this](int rank, const std::string& reason) {
                note([&] { ends.emplace_back(rank, reason); });
              }},
          [this](int rank, std::unique_ptr<WorkerLink> link) {
            links_[rank] = std::move(link);
            note([&] { ++num_links; });
          });
      port = listener_->port();
    });
  }
  ~TestCoordinator() {
    run([&] {
      listener_.reset();
      links_.clear();
    });
    guard_.reset();
    thread_.join();  // returns: nothing is left to do for a coordinator that is gone
  }

  // On the coordinator's thread; waits for it.
  void run(std::function<void()> body) {
    std::promise<void> done;
    boost::asio::post(io_, [&] {
      body();
      done.set_value();
    });
    done.get_future().wait();
  }
  WorkerLink& link(int rank) { return *links_.at(rank); }
  void destroy_link(int rank) {
    run([&] { links_.erase(rank); });
  }
  void stop() {
    run([&] { listener_->stop(); });
  }

  template <typename Condition>
  bool wait_until(Condition condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, 60s, condition);
  }
  std::unique_ptr<CoordinatorLink> dial(int rank) {
    auto link = dial_coordinator({"127.0.0.1"}, port, key, rank, 30);
    const int expected = ++dialed_;
    EXPECT_TRUE(wait_until([&] { return num_links == expected; }));
    return link;
  }

  const SessionKey key = make_session_key();
  uint16_t port = 0;
  // Read after wait_until() alone.
  std::vector<Bytes> frames;
  std::vector<std::pair<int, std::string>> ends;
  int num_links = 0;

 private:
  void note(const std::function<void()>& change) {
    const std::lock_guard lock(mutex_);
    change();
    changed_.notify_all();
  }

  boost::asio::io_context io_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> guard_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int dialed_ = 0;
  std::map<int, std::unique_ptr<WorkerLink>> links_;
  std::unique_ptr<LinkListener> listener_;
  std::thread thread_;
};

// A plain socket to the listener: somebody who is no worker.
class Stranger {
 public:
  explicit Stranger(uint16_t port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    const timeval limit{60, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  ~Stranger() { ::close(fd_); }
  void send(std::span<const uint8_t> bytes) {
    ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  template <size_t N>
  bool read(std::array<uint8_t, N>& out) {
    return ::recv(fd_, out.data(), N, MSG_WAITALL) == static_cast<ssize_t>(N);
  }
  // Reads to the end; true when the listener dropped the connection.
  bool dropped() {
    char rest[256];
    for (;;) {
      const ssize_t n = ::recv(fd_, rest, sizeof rest, 0);
      if (n == 0) return true;
      if (n < 0) return errno == ECONNRESET;
    }
  }
  handshake::Nonce read_challenge() {
    handshake::Challenge challenge;
    handshake::Nonce nonce{};
    EXPECT_TRUE(read(challenge) && handshake::read_challenge(challenge, &nonce));
    return nonce;
  }

 private:
  int fd_;
};

Bytes numbered(int i) {
  return make_frame(
      FrameType::kPlan, 1, Bytes(static_cast<size_t>(i * 37 % 5000), static_cast<uint8_t>(i)));
}

TEST(TcpLink, AThousandFramesGoBothWaysInOrder) {
  TestCoordinator coordinator(2, /*echo=*/true);
  const auto link = coordinator.dial(1);
  std::thread sender([&] {
    for (int i = 0; i < 1000; ++i) EXPECT_TRUE(link->send(numbered(i)));
  });
  Bytes frame;
  for (int i = 0; i < 1000; ++i) {
    ASSERT_TRUE(link->receive(&frame));
    ASSERT_EQ(frame, numbered(i));
  }
  sender.join();
  ASSERT_TRUE(coordinator.wait_until([&] { return coordinator.frames.size() == 1000; }));
  for (int i = 0; i < 1000; ++i) ASSERT_EQ(coordinator.frames[static_cast<size_t>(i)], numbered(i));
}

TEST(TcpLink, FramesOfSeveralThreadsStayWhole) {
  TestCoordinator coordinator(1);
  const auto link = coordinator.dial(0);
  const auto send_many = [&](uint8_t mark) {
    const Bytes frame = make_frame(FrameType::kHeartbeat, 1, Bytes(100'000, mark));
    for (int i = 0; i < 50; ++i) EXPECT_TRUE(link->send(frame));
  };
  std::thread other(send_many, 7);
  send_many(9);
  other.join();
  ASSERT_TRUE(coordinator.wait_until([&] { return coordinator.frames.size() == 100; }));
  for (const Bytes& frame : coordinator.frames) {
    EXPECT_EQ(std::count(frame.begin() + kFrameHeaderBytes, frame.end(), frame.back()), 100'000);
  }
}

TEST(TcpLink, AWorkersEndIsHeardOnce) {
  TestCoordinator coordinator(1);
  auto link = coordinator.dial(0);
  EXPECT_TRUE(link->send(numbered(1)));
  link.reset();
  ASSERT_TRUE(coordinator.wait_until([&] { return coordinator.ends.size() == 1; }));
  EXPECT_EQ(coordinator.ends[0], std::pair(0, std::string("the worker closed the connection")));
  EXPECT_EQ(coordinator.frames.size(), 1u);
  coordinator.run([&] {  // goes nowhere, and is no second end
    coordinator.link(0).send(std::make_shared<const Bytes>(numbered(2)));
    coordinator.link(0).close();
  });
  coordinator.run([] {});
  EXPECT_EQ(coordinator.ends.size(), 1u);
}

TEST(TcpLink, CloseDeliversWhatWasSentBefore) {
  TestCoordinator coordinator(1);
  const auto link = coordinator.dial(0);
  const Bytes large = make_frame(FrameType::kPlan, 1, Bytes(20 << 20, 5));
  EXPECT_TRUE(link->send(numbered(3)));  // unread, perhaps, when the coordinator closes
  coordinator.run([&] {
    coordinator.link(0).send(std::make_shared<const Bytes>(large));
    coordinator.link(0).send(std::make_shared<const Bytes>(numbered(2)));
    coordinator.link(0).close();
  });
  Bytes frame;
  ASSERT_TRUE(link->receive(&frame));
  EXPECT_EQ(frame, large);
  ASSERT_TRUE(link->receive(&frame));
  EXPECT_EQ(frame, numbered(2));
  EXPECT_FALSE(link->receive(&frame));
  ASSERT_TRUE(coordinator.wait_until([&] { return coordinator.ends.size() == 1; }));
  EXPECT_EQ(coordinator.ends[0].second, "closed by the coordinator");
}

TEST(TcpLink, ADestroyedLinkEndsTheWorkerAndCallsNobody) {
  TestCoordinator coordinator(1);
  const auto link = coordinator.dial(0);
  coordinator.destroy_link(0);
  Bytes frame;
  EXPECT_FALSE(link->receive(&frame));
  coordinator.run([] {});
  EXPECT_TRUE(coordinator.ends.empty());
}

TEST(TcpLink, ShutdownWakesABlockedReceive) {
  TestCoordinator coordinator(1);
  const auto link = coordinator.dial(0);
  std::thread worker([&] {
    Bytes frame;
    EXPECT_FALSE(link->receive(&frame));
  });
  link->shutdown();
  worker.join();
  EXPECT_FALSE(link->send(numbered(1)));
}

TEST(TcpLink, AMalformedFrameEndsTheLink) {
  TestCoordinator coordinator(2);
  const auto link = coordinator.dial(0);
  Bytes frame = numbered(1);
  frame[8] = frame[9] = frame[10] = frame[11] = 0xff;  // four gigabytes
  EXPECT_TRUE(link->send(frame));
  ASSERT_TRUE(coordinator.wait_until([&] { return coordinator.ends.size() == 1; }));
  EXPECT_EQ(coordinator.ends[0].second, "the worker sent a malformed frame");

  const auto other = coordinator.dial(1);
  coordinator.run([&] { coordinator.link(1).send(std::make_shared<const Bytes>(frame)); });
  EXPECT_FALSE(other->receive(&frame));
}

TEST(TcpHandshake, ABadKeyIsRefusedOnBothSides) {
  TestCoordinator coordinator(1);
  try {
    dial_coordinator({"127.0.0.1"}, coordinator.port, make_session_key(), 0, 1);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::kAddress);
    EXPECT_NE(std::string(error.what()).find("session key"), std::string::npos) << error.what();
  }
  EXPECT_EQ(coordinator.num_links, 0);
  EXPECT_NE(coordinator.dial(0), nullptr) << "the rank is still free";
}

TEST(TcpHandshake, ARankOutOfRangeOrTakenIsRefused) {
  TestCoordinator coordinator(2);
  const auto link = coordinator.dial(1);
  for (const int rank : {1, 2, -1}) {
    EXPECT_THROW(
        dial_coordinator({"127.0.0.1"}, coordinator.port, coordinator.key, rank, 1), Error);
  }
  EXPECT_EQ(coordinator.num_links, 1);
}

TEST(TcpHandshake, GarbageIsDroppedAtTheFirstWrongByte) {
  TestCoordinator coordinator(1);
  Stranger http(coordinator.port);
  const std::string request = "GET / HTTP/1.1\r\n\r\n";  // shorter than an answer: no more comes
  http.send({reinterpret_cast<const uint8_t*>(request.data()), request.size()});
  EXPECT_TRUE(http.dropped());

  Stranger forger(coordinator.port);
  forger.read_challenge();
  forger.send(handshake::make_answer(
      make_session_key(), handshake::make_nonce(), handshake::make_nonce(), 0));
  EXPECT_TRUE(forger.dropped());
  EXPECT_EQ(coordinator.num_links, 0);
}

TEST(TcpHandshake, AReplayedAnswerIsRefused) {
  TestCoordinator coordinator(1);
  const auto recorded = [&](Stranger& worker) {
    return handshake::make_answer(
        coordinator.key, worker.read_challenge(), handshake::make_nonce(), 0);
  };
  Stranger worker(coordinator.port);
  const handshake::Answer answer = recorded(worker);
  Stranger thief(coordinator.port);
  thief.read_challenge();
  thief.send(answer);
  EXPECT_TRUE(thief.dropped());
  worker.send(answer);
  handshake::Mac proof;
  EXPECT_TRUE(worker.read(proof)) << "the same bytes pass where they belong";
}

TEST(TcpHandshake, ACoordinatorWithoutTheKeyIsNotTrusted) {
  TestCoordinator real(1);
  // A listener that passes the worker's answer on and makes up the proof.
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ASSERT_EQ(::bind(listener, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(::listen(listener, 4), 0);
  ::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size);
  std::thread impostor([&] {
    for (int fd; (fd = ::accept(listener, nullptr, nullptr)) >= 0; ::close(fd)) {
      const handshake::Challenge challenge = handshake::make_challenge(handshake::make_nonce());
      ::send(fd, challenge.data(), challenge.size(), MSG_NOSIGNAL);
      handshake::Answer answer;
      ::recv(fd, answer.data(), answer.size(), MSG_WAITALL);
      ::send(fd, answer.data() + answer.size() - 32, 32, MSG_NOSIGNAL);  // reflected
    }
  });
  try {
    dial_coordinator({"127.0.0.1"}, ntohs(address.sin_port), real.key, 0, 1);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("does not hold"), std::string::npos) << error.what();
  }
  ::shutdown(listener, SHUT_RDWR);
  impostor.join();
  ::close(listener);
}

TEST(TcpHandshake, SilentPeersAreDroppedAndDoNotKeepWorkersOut) {
  TestCoordinator coordinator(1);
  std::vector<std::unique_ptr<Stranger>> silent;
  for (int i = 0; i < 100; ++i) silent.push_back(std::make_unique<Stranger>(coordinator.port));
  EXPECT_TRUE(silent.front()->dropped()) << "the oldest makes room";
  const auto link = coordinator.dial(0);
  EXPECT_TRUE(silent.back()->dropped()) << "after ten seconds of silence";
}

TEST(TcpHandshake, AStoppedListenerAcceptsNobodyAndItsLinksLiveOn) {
  TestCoordinator coordinator(2, /*echo=*/true);
  const auto link = coordinator.dial(0);
  Stranger waiting(coordinator.port);
  waiting.read_challenge();
  coordinator.stop();
  EXPECT_TRUE(waiting.dropped());
  EXPECT_THROW(dial_coordinator({"127.0.0.1"}, coordinator.port, coordinator.key, 1, 1), Error);
  EXPECT_TRUE(link->send(numbered(4)));
  Bytes frame;
  EXPECT_TRUE(link->receive(&frame));
  EXPECT_EQ(frame, numbered(4));
}

TEST(TcpLink, TriesTheAddressesInTurnAndNamesThemWhenNoneAnswers) {
  TestCoordinator coordinator(1);
  EXPECT_NE(dial_coordinator({"127.0.0.2", "not an address", "127.0.0.1"}, coordinator.port,
                coordinator.key, 0, 30),
      nullptr);
  try {
    dial_coordinator({"127.0.0.2"}, coordinator.port, coordinator.key, 0, 1);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::kAddress);
    EXPECT_NE(std::string(error.what()).find("127.0.0.2"), std::string::npos) << error.what();
  }
}

TEST(TcpLink, AnAddressThatIsNotOursIsAnError) {
  boost::asio::io_context io;
  const auto listen_on = [&](const std::string& address) {
    LinkListener(io, address, make_session_key(), 1, LinkEvents{}, nullptr);
  };
  for (const char* bad : {"192.0.2.1", "not an address", ""}) {
    try {
      listen_on(bad);
      ADD_FAILURE() << bad;
    } catch (const Error& error) {
      EXPECT_EQ(error.exit_code(), ExitCode::kAddress);
    }
  }
}

}  // namespace
}  // namespace millrace
