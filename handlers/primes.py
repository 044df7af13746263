"""CPU work: `isolation: process` in queues.yaml keeps it away from all other handlers."""


# With one parameter, returning is the acknowledgement, and what is returned is the result.
def count(limit: int) -> int:
    sieve = bytearray([1]) * (limit + 1)
    sieve[:2] = bytes(len(sieve[:2]))
    for n in range(2, int(limit**0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, limit + 1, n)))
    found = sum(sieve)
    print(f"There are {found} primes up to {limit}")
    return found
