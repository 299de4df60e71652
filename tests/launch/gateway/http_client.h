// A blocking HTTP client for tests: says exactly the bytes it is given, reads answers and streams.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>

namespace millrace {

struct HttpAnswer {
  int status = 0;
  std::string head;
  std::string body;

  bool has(const std::string& line) const {
    return head.find("\r\n" + line + "\r\n") != std::string::npos;
  }
};

class HttpClient {
 public:
  // `from`: the client's own address.
  explicit HttpClient(uint16_t port, const char* from = "127.0.0.1")
      : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    const timeval patience{20, 0};  // a test that waits in vain fails instead of hanging
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = inet_addr(from);
    bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address));
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  }
  ~HttpClient() { close(); }
  HttpClient(const HttpClient&) = delete;

  bool connected() const { return connected_; }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  void end_sending() { shutdown(fd_, SHUT_WR); }

  void send(const std::string& bytes) {
    size_t sent = 0;
    while (sent < bytes.size()) {
      const ssize_t n = ::send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return;
      sent += static_cast<size_t>(n);
    }
  }
  void get(const std::string& path, const std::string& fields = "") {
    send("GET " + path + " HTTP/1.1\r\nHost: localhost\r\n" + fields + "\r\n");
  }
  void post(const std::string& path, const std::string& body, const std::string& fields = "",
      const std::string& version = "1.1") {
    send("POST " + path + " HTTP/" + version +
         "\r\nHost: localhost\r\nContent-Type: application/json\r\n" +
         "Content-Length: " + std::to_string(body.size()) + "\r\n" + fields + "\r\n" + body);
  }

  // Head and body of the next answer; a chunked one is put together.
  HttpAnswer read_answer() {
    HttpAnswer answer = read_head();
    if (answer.has("Transfer-Encoding: chunked")) {
      for (std::string piece = read_chunk(); !piece.empty(); piece = read_chunk())
        answer.body += piece;
      return answer;
    }
    const size_t at = answer.head.find("Content-Length: ");
    if (at == std::string::npos) {
      while (more()) continue;
      answer.body = std::exchange(input_, {});
      return answer;
    }
    const size_t length = std::strtoul(answer.head.c_str() + at + 16, nullptr, 10);
    while (input_.size() < length && more()) continue;
    answer.body = take(length);
    return answer;
  }
  HttpAnswer read_head() {
    HttpAnswer answer;
    answer.head = take_until("\r\n\r\n");
    if (answer.head.size() > 12) answer.status = std::atoi(answer.head.c_str() + 9);
    return answer;
  }
  // The data of the next chunk; "" at the end of the body.
  std::string read_chunk() {
    const size_t size = std::strtoul(take_until("\r\n").c_str(), nullptr, 16);
    while (input_.size() < size + 2 && more()) continue;
    std::string data = take(size);
    take(2);
    return data;
  }
  // Takes a few bytes that nobody looks at.
  void sip(size_t bytes) {
    char drop[1000];
    recv(fd_, drop, std::min(bytes, sizeof(drop)), MSG_DONTWAIT);
  }
  // True when the server has closed (and said nothing more).
  bool at_end() { return input_.empty() && !more(); }

 private:
  bool more() {
    char buffer[65536];
    const ssize_t n = recv(fd_, buffer, sizeof(buffer), 0);
    if (n > 0) input_.append(buffer, static_cast<size_t>(n));
    EXPECT_FALSE(n < 0 && errno == EAGAIN) << "the server said nothing in time";
    return n > 0;
  }
  std::string take(size_t size) {
    std::string taken = input_.substr(0, size);
    input_.erase(0, size);
    return taken;
  }
  std::string take_until(const std::string& end) {
    size_t at = input_.find(end);
    while (at == std::string::npos) {
      if (!more()) return std::exchange(input_, {});
      at = input_.find(end);
    }
    return take(at + end.size());
  }

  int fd_;
  bool connected_ = false;
  std::string input_;
};

// One request over a connection of its own.
inline HttpAnswer get_from(uint16_t port, const std::string& path) {
  HttpClient client(port);
  client.get(path);
  return client.read_answer();
}
inline HttpAnswer post_to(uint16_t port, const std::string& path, const std::string& body) {
  HttpClient client(port);
  client.post(path, body);
  return client.read_answer();
}

}  // namespace millrace
