"""From findings to what is read: tables, figures, README, notebooks, report and poster."""
