"""Search a mailbox and answer a question from it: an index, the environment, its questions and its players."""

from trl_ext.agents.environments.email_search.environment import EmailSearch
from trl_ext.agents.environments.email_search.index import MailIndex
from trl_ext.agents.environments.email_search.mail import Email, Question

__all__ = ["Email", "EmailSearch", "MailIndex", "Question"]
