"""Sends movements for three accounts, mixed as they come in: ``teller.py`` or ``teller.py NUMBER``, of each account."""

import sys

from handrail import context

ACCOUNTS = ("ada", "bob", "eve")


def main(count: int) -> None:
    items = [
        context.queues.item({"account": account, "number": number, "amount": number}, key=account)
        for number in range(1, count + 1)
        for account in ACCOUNTS
    ]
    context.queues.send_bulk("movements", items).wait(timeout=30)
    print(f"sent {len(items)} movements")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
