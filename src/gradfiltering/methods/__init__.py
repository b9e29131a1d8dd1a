"""Methods of selection: score and select, and LEAD, which selects while the target trains."""
