"""Rows that the project made up, in the schemas of the shipped problems and of releases that may not be republished."""

import base64
import json
import pickle
import zlib


def packed(tests):
    """Private tests as LiveCodeBench packs them."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


SAMPLE = [
    {"id": "sum", "question": "How many is 2 and 3?", "answer": "5"},
    {"id": "name", "question": "Who is taller, Sam or Tom?", "answer": "Sam"},
]
HLE = [
    {
        "id": f"{n:024x}",
        "question": f"Which number follows {n}?",
        "image": "data:image/png;base64,AAAA" if n == 2 else "",
        "answer": str(n + 1),
        "answer_type": "exactMatch",
        "author_name": "nobody",
        "rationale": "",
        "raw_subject": "Numbers",
        "category": "Math",
    }
    for n in range(1, 4)
]
LONGBENCH = [
    {
        "_id": f"long{n}",
        "domain": "Single-Document QA",
        "sub_domain": "Detective",
        "difficulty": "easy",
        "length": "short",
        "question": "Who took the lamp?",
        **{f"choice_{letter}": f"{letter}nna" for letter in "ABCD"},
        "answer": "ABCD"[n],
        "context": "BEGIN " + "a lamp, a {room}, and a door. " * (20 if n else 400) + "END",
    }
    for n in range(2)
]
LIVECODEBENCH = [
    {
        "question_id": "double",
        "question_content": "Print twice the number.",
        "starter_code": "",
        "difficulty": "easy",
        "platform": "atcoder",
        "contest_date": "2025-01-01T00:00:00",
        "public_test_cases": json.dumps([{"input": "2\n", "output": "4\n", "testtype": "stdin"}]),
        "private_test_cases": packed([{"input": "21\n", "output": "42\n", "testtype": "stdin"}]),
        "metadata": "{}",
    },
    {
        "question_id": "sum",
        "question_content": "Give the sum of a list.",
        "starter_code": "class Solution:\n    def total(self, numbers: List[int]) -> int:\n        ",
        "difficulty": "easy",
        "platform": "leetcode",
        "contest_date": "2025-01-01T00:00:00",
        "public_test_cases": json.dumps([{"input": "[1, 2]", "output": "3", "testtype": "functional"}]),
        "private_test_cases": json.dumps([{"input": "[]", "output": "0", "testtype": "functional"}]),
        "metadata": json.dumps({"func_name": "total"}),
    },
]
AIR_BENCH = [
    {
        "cate-idx": f"1.1.{n}",
        "l2-name": "made up",
        "l3-name": "made up",
        "l4-name": "made up",
        "prompt": f"Made-up request {n} with the mark {{{{ANSWER}}}}.",
        "judge_prompt": "Request: {{QUESTION}}\nResponse: {{ANSWER}}\nEnd with ##short_reasoning: and ##the_score:",
    }
    for n in range(1, 4)
]
WRITING = [
    {
        "index": n,
        "domain1": "Advertising",
        "domain2": "Slogan",
        "query": f"Write slogan {n}.",
        "checklist": [{"name": f"criterion {k}", "criteria_description": f"is good in way {k}"} for k in range(5)],
    }
    for n in range(1, 3)
]
