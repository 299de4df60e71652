#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string_view>

#include "comm/link.h"

namespace millrace {

namespace {

// Bridges of containers and virtual machines: another host has its own of the same address.
bool is_local_bridge(std::string_view interface) {
  constexpr std::string_view kPrefixes[] = {"docker", "br-", "virbr", "cni", "lxc", "podman"};
  return std::ranges::any_of(kPrefixes, [&](auto prefix) { return interface.starts_with(prefix); });
}

bool is_link_local(const sockaddr* address) {
  return address->sa_family == AF_INET6 &&
         IN6_IS_ADDR_LINKLOCAL(&reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr);
}

// Null when the system does not tell.
std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> interfaces() {
  ifaddrs* list = nullptr;
  return {getifaddrs(&list) == 0 ? list : nullptr, freeifaddrs};
}

}  // namespace

std::vector<std::string> local_bridges() {
  std::set<std::string> names;
  const auto list = interfaces();
  for (const ifaddrs* entry = list.get(); entry != nullptr; entry = entry->ifa_next) {
    if (is_local_bridge(entry->ifa_name)) names.insert(entry->ifa_name);
  }
  return {names.begin(), names.end()};
}

std::vector<std::string> local_addresses(bool local_only) {
  if (local_only) return {"127.0.0.1"};
  const auto list = interfaces();
  std::multimap<int, std::string> by_likelihood;  // the least unlikely first
  for (const ifaddrs* entry = list.get(); entry != nullptr; entry = entry->ifa_next) {
    const sockaddr* address = entry->ifa_addr;
    const bool usable = address != nullptr && (entry->ifa_flags & IFF_UP) != 0 &&
                        (entry->ifa_flags & IFF_LOOPBACK) == 0 &&
                        (address->sa_family == AF_INET || address->sa_family == AF_INET6) &&
                        !is_link_local(address);
    if (!usable) continue;
    const bool ipv6 = address->sa_family == AF_INET6;
    char text[NI_MAXHOST];
    const socklen_t size = ipv6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
    if (getnameinfo(address, size, text, sizeof text, nullptr, 0, NI_NUMERICHOST) != 0) continue;
    by_likelihood.emplace((is_local_bridge(entry->ifa_name) ? 2 : 0) + (ipv6 ? 1 : 0), text);
  }
  if (by_likelihood.empty()) return {"127.0.0.1"};
  std::vector<std::string> addresses;
  for (const auto& [unlikely, address] : by_likelihood) addresses.push_back(address);
  return addresses;
}

}  // namespace millrace
