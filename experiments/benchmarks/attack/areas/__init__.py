"""Areas of the attack. Each file has run_case(seed, subjects) -> Outcome and one subject.

Files in reading order: kills, damage, races, resources, mutated_configs, resumes, malicious.
"""
