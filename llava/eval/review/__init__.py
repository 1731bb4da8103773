"""Reviews of answers by a judge, a language model behind the OpenAI protocol."""
