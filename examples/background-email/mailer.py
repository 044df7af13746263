"""How an e-mail leaves: by the server at SMTP_HOST, or into outbox/ when there is none."""

import os
import smtplib
from email.message import EmailMessage
from pathlib import Path


def deliver(message: EmailMessage, key: str) -> str:
    host = os.environ.get("SMTP_HOST")
    if host is None:
        outbox = Path("outbox")
        outbox.mkdir(exist_ok=True)
        file = outbox / f"{key}.eml"
        file.write_bytes(message.as_bytes())
        return str(file)
    with smtplib.SMTP(host, int(os.environ.get("SMTP_PORT", "25")), timeout=10) as server:
        server.send_message(message)
    return host
