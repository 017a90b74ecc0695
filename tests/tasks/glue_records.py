"""Records of GLUE sets, made by hand."""


def rte(count: int, first: int = 0) -> list[dict]:
    return [
        {"sentence1": f"premise {number}", "sentence2": f"claim {number}", "label": number % 2, "idx": number}
        for number in range(first, first + count)
    ]


def record(first: str, second: str | None = None, label: float = 0) -> dict:
    return {"sentence1": first, "sentence2": second, "label": label}
