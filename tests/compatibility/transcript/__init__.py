"""The same script of AMQP operations against RabbitMQ and Leveret, compared line by line."""
