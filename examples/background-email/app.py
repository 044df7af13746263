"""The web app. It answers once the broker has the e-mail, and never waits for a mail server."""

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from handrail import context
from handrail.errors import SendError

app = FastAPI()


class Person(BaseModel):
    name: str
    address: str


@app.post("/signup", status_code=202)
async def signup(person: Person):
    # a model is sent as it is; the handler gets it as the type that it names
    receipt = context.queues.send_to_queue("welcome-email", person)
    try:
        await receipt  # from here on the e-mail outlives any crash
    except SendError as error:
        raise HTTPException(503, "try again in a moment") from error
    return {"welcome": person.name, "email": receipt.id}
