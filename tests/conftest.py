from hypothesis import settings

# The same examples every time, and no deadline: a busy machine is no reason to fail.
settings.register_profile("quaver", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("quaver")
