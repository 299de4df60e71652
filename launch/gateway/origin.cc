#include "launch/gateway/origin.h"

#include <algorithm>
#include <boost/asio/ip/address.hpp>
#include <boost/beast/core/string.hpp>

namespace millrace {
namespace {

using boost::beast::iequals;

boost::asio::ip::address address_of(std::string_view host, bool& is_address) {
  boost::system::error_code error;
  const auto address = boost::asio::ip::make_address(std::string(host), error);
  is_address = !error;
  return address;
}

bool is_in(const std::vector<std::string>& names, std::string_view name) {
  return std::ranges::any_of(
      names, [&](const std::string& each) { return each == "*" || iequals(each, name); });
}

// Of "name:8000", "[::1]:8000".
std::string_view without_port(std::string_view host) {
  if (host.starts_with('[')) return host.substr(1, std::min(host.find(']'), host.size()) - 1);
  return host.substr(0, host.find(':'));
}

}  // namespace

bool is_loopback(std::string_view host) {
  bool is_address = false;
  const auto address = address_of(host, is_address);
  return is_address ? address.is_loopback() : iequals(host, "localhost");
}

OriginGuard::OriginGuard(
    std::string_view bound_to, std::vector<std::string> hosts, std::vector<std::string> origins)
    : any_host_(hosts.empty() && !is_loopback(bound_to)),
      hosts_(std::move(hosts)),
      origins_(std::move(origins)) {}

bool OriginGuard::host_allowed(std::string_view host) const {
  if (any_host_) return true;
  const std::string_view name = without_port(host);
  // No name leads to an address that is asked for as such.
  bool is_address = false;
  address_of(name, is_address);
  return is_address || iequals(name, "localhost") || is_in(hosts_, name);
}

bool OriginGuard::origin_named(std::string_view origin) const { return is_in(origins_, origin); }

bool OriginGuard::origin_allowed(std::string_view origin, std::string_view host) const {
  const size_t scheme = origin.find("://");
  return origin_named(origin) ||
         (scheme != std::string_view::npos && iequals(origin.substr(scheme + 3), host));
}

}  // namespace millrace
