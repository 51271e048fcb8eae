// Stand-in: keeps the certificate of the authority in a file, for mosquitto_pub.
#pragma once

#include <fstream>

struct WiFiClientSecure {
  void setCACert(const char *text) { std::ofstream("sketch-ca.pem") << text; }
};
