"""Books movements. Each account is a file with a line a movement, and no lock guards it: its movements never run at once."""

from dataclasses import dataclass
from pathlib import Path

from handrail import Reject

LEDGER = Path("ledger")


class ClosedError(Exception):
    """Nothing can be booked at the moment."""


@dataclass
class Movement:
    account: str
    number: int  # 1, 2, 3 … of the account
    amount: int  # in cents


def book(movement: Movement, callback):
    if (LEDGER / "closed").exists():
        # tried again where it stands: the movements behind it wait, other accounts are not concerned
        raise ClosedError("the ledger is closed")

    account = LEDGER / f"{movement.account}.csv"
    lines = account.read_text().splitlines() if account.exists() else []
    last, balance = (int(field) for field in lines[-1].split(",")) if lines else (0, 0)

    if movement.number <= last:
        # booked before, by a worker that was killed between the line below and its acknowledgement
        callback()
        return
    if balance + movement.amount < 0:
        # a dead letter, and the account goes on with the next one
        callback(Reject(f"movement {movement.number} would overdraw {movement.account}"))
        return

    LEDGER.mkdir(exist_ok=True)
    with account.open("a") as file:
        file.write(f"{movement.number},{balance + movement.amount}\n")
    callback()
