"""An async handler with a typed message."""

import asyncio
from dataclasses import dataclass

from handrail import context


@dataclass
class User:
    name: str
    address: str


# A message that does not fit User is dead-lettered with the reason, since no retry can mend it.
async def send_welcome(user: User, callback):
    if "@" not in user.address:
        raise ValueError(f"{user.address!r} is no e-mail address")  # queues.yaml says: reject, no retry

    await asyncio.sleep(0.1)  # where a real one would speak to a mail server
    print(f"Welcome, {user.name}! (attempt {context.job.attempt})")

    # callback(None, result) acknowledges and keeps a result
    callback(None, {"sent_to": user.address})
