"""The smallest handler: it prints what it gets."""


def handler(message, callback):
    # message is the payload exactly as it was sent: {"n": 1} arrives as a dict
    print("Received message:", message)

    # "done": the message is acknowledged and gone. callback(error), or an exception, would have it retried.
    callback()
