"""Benchmarks: their published files, read to canonical rows.

| kind | file of the source | what it reads |
|---|---|---|
| ``vqav2``, ``gqa``, ``textvqa``, ``vizwiz`` | answers.py | questions with short answers |
| ``scienceqa``, ``mmbench``, ``seed_bench`` | choices.py | questions with options |
| ``pope``, ``mme`` | yes_no.py | questions to be answered by yes or no |
| ``llava_wild``, ``mm_vet`` | judged.py | questions whose answers a model judges |

Beside what every source tells, the truth of a row holds ``groups`` (axis to a group or several, by which a benchmark
gives its numbers) and ``aliases`` (other names of the row, in other people's files of answers).
"""
