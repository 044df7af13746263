// A client of another language and library, for tests: `node amqp_client.js publish|take|look URL QUEUE [MESSAGES|COUNT]`.
// Messages go in and out as JSON lines {body: base64, ...properties}; `take` acknowledges, `look` puts back in the same order.
const amqplib = require("amqplib");

async function main([command, url, queue, argument]) {
  const connection = await amqplib.connect(url);
  try {
    if (command === "publish") {
      const channel = await connection.createConfirmChannel();
      const returned = [];
      channel.on("return", (message) => returned.push(message.fields.replyText));
      for (const { body, ...options } of JSON.parse(argument)) {
        // a Buffer is sent as it is; what JSON cannot say is said by names
        if (options.headers && options.headers.bytes) options.headers.bytes = Buffer.from(options.headers.bytes, "base64");
        channel.publish("", queue, Buffer.from(body, "base64"), { mandatory: true, ...options });
      }
      await channel.waitForConfirms();
      if (returned.length) throw new Error(`returned: ${returned[0]}`);
      return;
    }
    const channel = await connection.createChannel();
    const got = [];
    for (let left = Number(argument); left > 0; left--) {
      const message = await channel.get(queue);
      if (message === false) break;
      got.push(message);
      console.log(JSON.stringify({ body: message.content.toString("base64"), ...message.properties }));
    }
    for (const message of command === "look" ? got.reverse() : got) {
      if (command === "look") channel.nack(message);
      else channel.ack(message);
    }
    await channel.close();
  } finally {
    await connection.close();
  }
}

main(process.argv.slice(2)).catch((error) => {
  console.error(String(error));
  process.exit(1);
});
