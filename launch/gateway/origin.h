// Which hosts this server answers for and which pages of browsers may ask: against pages whose name
// an attacker lets point here (DNS rebinding), and against pages of other origins. Any thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace millrace {

class OriginGuard {
 public:
  // `bound_to`: the address listened on. `hosts`: names that a Host field may have beside localhost
  // and addresses, without port. `origins`: pages that may ask, "https://a.example". "*": all.
  OriginGuard(
      std::string_view bound_to, std::vector<std::string> hosts, std::vector<std::string> origins);

  bool host_allowed(std::string_view host) const;
  // Named, so that its pages may read the answers.
  bool origin_named(std::string_view origin) const;
  // Named, or this server's own.
  bool origin_allowed(std::string_view origin, std::string_view host) const;

 private:
  bool any_host_ = false;
  std::vector<std::string> hosts_;
  std::vector<std::string> origins_;
};

// No other machine reaches it: "localhost", "127.0.0.1", "::1".
bool is_loopback(std::string_view host);

}  // namespace millrace
