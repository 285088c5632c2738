"""Pictures and pages for people: run reports, the gallery, the sheet of a run."""
