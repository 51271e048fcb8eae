"""Scripts of AMQP operations, run against RabbitMQ and Leveret and compared line by line."""
