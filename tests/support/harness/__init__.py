"""Code that the suites share: a codec, a raw AMQP client, brokers, and the program that runs the suites."""
