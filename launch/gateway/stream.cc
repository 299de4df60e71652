#include "launch/gateway/stream.h"

#include <openssl/ssl.h>

#include "engine/base/file.h"
#include "engine/base/status.h"

namespace millrace {

namespace ssl = boost::asio::ssl;

std::unique_ptr<ssl::context> make_tls(const std::string& certificate, const std::string& key) {
  if (certificate.empty() && key.empty()) return nullptr;
  if (certificate.empty() || key.empty())
    throw Error(ExitCode::kUsage, "--ssl-certfile and --ssl-keyfile go together: {} is missing",
        key.empty() ? "--ssl-keyfile" : "--ssl-certfile");
  for (const std::string& path : {certificate, key}) File(path, ExitCode::kInput);
  auto tls = std::make_unique<ssl::context>(ssl::context::tls_server);
  SSL_CTX_set_min_proto_version(tls->native_handle(), TLS1_2_VERSION);
  SSL_CTX_set_options(tls->native_handle(), SSL_OP_NO_RENEGOTIATION);
  // Nobody is there to be asked.
  tls->set_password_callback([](size_t, ssl::context::password_purpose) { return ""; });
  const auto check = [](const boost::system::error_code& error, const char* flag,
                         const std::string& path, const char* wanted) {
    if (error)
      throw Error(ExitCode::kInput, "{} '{}': not {} ({})", flag, path, wanted, error.message());
  };
  boost::system::error_code error;
  tls->use_certificate_chain_file(certificate, error);
  check(error, "--ssl-certfile", certificate, "a certificate in PEM");
  tls->use_private_key_file(key, ssl::context::pem, error);
  check(error, "--ssl-keyfile", key, "the certificate's key, in PEM and without a password");
  return tls;
}

}  // namespace millrace
