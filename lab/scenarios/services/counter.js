// Answers each line with how many it has seen on this connection, and on all.
const net = require('node:net');
let all = 0;
net.createServer((socket) => {
  let own = 0;
  let rest = '';
  socket.on('data', (data) => {
    rest += data;
    for (;;) {
      const end = rest.indexOf('\n');
      if (end < 0) return;
      rest = rest.slice(end + 1);
      own += 1;
      all += 1;
      socket.write(`${own} ${all}\n`);
    }
  });
  socket.on('error', () => {});
}).listen(7001);
setInterval(() => {}, 250);
