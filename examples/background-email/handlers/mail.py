"""What the worker does. `mailer` is the project's own module: the project's root is importable from handlers."""

from email.message import EmailMessage

import mailer
from pydantic import BaseModel

from handrail import context


class Person(BaseModel):
    name: str
    address: str


# smtplib blocks, so this is a plain function: it runs in a thread
def send_welcome(person: Person, callback):
    email = EmailMessage()
    email["From"] = "hello@example.org"
    email["To"] = person.address
    email["Subject"] = f"Welcome, {person.name}"
    # a mail server that gets it twice, after a crash at the wrong moment, can tell by this
    email["Message-ID"] = f"<{context.job.id}@example.org>"
    email.set_content(f"Hello {person.name},\n\nit is good to have you here.\n")

    place = mailer.deliver(email, context.job.id)
    print(f"sent a welcome to {person.address} ({place})")
    callback(None, {"sent_by": place})
