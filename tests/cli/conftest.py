from tests.judging.conftest import conf_folder, make_verdict, review_files  # noqa: F401
