"""What the suites under tests/ share: a codec, a raw peer, and brokers to run them against."""
