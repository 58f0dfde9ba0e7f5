import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.ServerSocket;
import java.net.Socket;
import java.util.concurrent.atomic.AtomicLong;

/** Answers each line with how many it has seen on this connection, and on all. */
public class Counter {
    public static void main(String[] args) throws Exception {
        AtomicLong all = new AtomicLong();
        try (ServerSocket server = new ServerSocket(7002)) {
            while (true) {
                Socket socket = server.accept();
                new Thread(() -> {
                    try (socket) {
                        var in = new BufferedReader(new InputStreamReader(socket.getInputStream()));
                        long own = 0;
                        while (in.readLine() != null) {
                            own += 1;
                            String text = own + " " + all.incrementAndGet() + "\n";
                            socket.getOutputStream().write(text.getBytes());
                        }
                    } catch (Exception error) {
                        error.printStackTrace();
                    }
                }).start();
            }
        }
    }
}
