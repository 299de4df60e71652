#include "launch/cluster/ticket.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "engine/base/status.h"

namespace millrace {
namespace {

LaunchTicket sample() {
  LaunchTicket ticket;
  ticket.key = make_session_key();
  ticket.addresses = {"10.1.2.3", "192.168.0.1"};
  ticket.port = 54321;
  ticket.tp = 4;
  ticket.pp = 2;
  ticket.timeout_s = 7;
  ticket.log_level = "warning";
  return ticket;
}

TEST(Ticket, SurvivesTheWay) {
  const LaunchTicket sent = sample();
  LaunchTicket got;
  ASSERT_TRUE(decode(encode(sent), &got));
  EXPECT_EQ(got.key, sent.key);
  EXPECT_EQ(got.addresses, sent.addresses);
  EXPECT_EQ(got.port, sent.port);
  EXPECT_EQ(got.tp, sent.tp);
  EXPECT_EQ(got.pp, sent.pp);
  EXPECT_EQ(got.timeout_s, sent.timeout_s);
  EXPECT_EQ(got.log_level, sent.log_level);
}

TEST(Ticket, EveryTornOneIsRefused) {
  const Bytes whole = encode(sample());
  LaunchTicket got;
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_FALSE(decode(std::span(whole).first(size), &got)) << size;
  }
  Bytes longer = whole;
  longer.push_back(0);
  EXPECT_FALSE(decode(longer, &got));
}

TEST(Ticket, IsReadFromAPipe) {
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  const Bytes sent = encode(sample());
  ASSERT_EQ(write(fds[1], sent.data(), sent.size()), static_cast<ssize_t>(sent.size()));
  EXPECT_EQ(read_ticket(fds[0]), sent);
  ASSERT_EQ(write(fds[1], "hello there", 11), 11);
  EXPECT_THROW(read_ticket(fds[0]), Error);  // a person's words
  close(fds[1]);
  EXPECT_THROW(read_ticket(fds[0]), Error);  // nothing
  close(fds[0]);
}

}  // namespace
}  // namespace millrace
