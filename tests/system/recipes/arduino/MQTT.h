// Stand-in for the library MQTT by Joël Gähwiler: mosquitto_pub sends what the sketch publishes, with the sketch's own
// address, authority, identifier, user and topic. Also has main(): it runs the sketch until it has published or failed to
// connect often enough, as the environment says.
#pragma once

#include <string>

#include "WiFiClientSecure.h"

unsigned long now_ms = 0;

void setup();
void loop();

class MQTTClient {
 public:
  explicit MQTTClient(int) {}

  void begin(const char *host, int port, WiFiClientSecure &) {
    command = std::string("mosquitto_pub --cafile sketch-ca.pem -h ") + host + " -p " + std::to_string(port);
  }

  void setOptions(int, bool, int) {}
  bool loop() { return is_connected; }
  bool connected() { return is_connected; }

  bool connect(const char *id, const char *user, const char *password) {
    login = std::string(" -i ") + id + " -u " + user + " -P '" + password + "'";
    // Connects, and publishes nothing, because there are no lines.
    is_connected = run(" -t none -l </dev/null");
    failures += is_connected ? 0 : 1;
    return is_connected;
  }

  bool publish(const char *topic, const char *payload, bool is_retained, int qos) {
    is_connected = run(std::string(" -t ") + topic + " -m " + payload + " -q " + std::to_string(qos) + (is_retained ? " -r" : ""));
    published += is_connected ? 1 : 0;
    return is_connected;
  }

  static inline int failures = 0;
  static inline int published = 0;

 private:
  bool run(const std::string &options) { return std::system((command + login + options).c_str()) == 0; }

  std::string command;
  std::string login;
  bool is_connected = false;
};

int main() {
  const int failures_max = std::atoi(std::getenv("SKETCH_FAILURES"));
  const int published_max = std::atoi(std::getenv("SKETCH_READINGS"));
  setup();
  while (MQTTClient::failures < failures_max && MQTTClient::published < published_max) loop();
  std::fflush(stdout);
  return 0;
}
