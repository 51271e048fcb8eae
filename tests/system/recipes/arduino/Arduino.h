// Stand-in for the parts of the Arduino core for the ESP32 that the guide's sketch uses. The time is virtual: it passes
// only in delay(), so that pauses of a minute take no time and are the same in every run.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>

using std::min;

extern unsigned long now_ms;

inline unsigned long millis() { return now_ms; }

// Prints pauses of a second and more, which the test compares.
inline void delay(unsigned long ms) {
  now_ms += ms;
  if (ms >= 1000) std::printf("pause %lu\n", ms);
}

// Always 0: the pauses of a run must be known.
inline long random(long) { return 0; }

// The temperature of the chip.
inline float temperatureRead() { return 21.5F; }

inline void configTime(long, int, const char *) {}

struct {
  void begin(unsigned long) {}
  void println(const char *line) { std::puts(line); }
} inline Serial;
