import java.io.InputStream;
import java.io.OutputStream;
import java.net.HttpURLConnection;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** Posts a record with either of the JDK's clients, as they come; prints status and body. */
public class Post {
    public static void main(String[] arguments) throws Exception {
        URI uri = URI.create(arguments[0]);
        HttpClient client = HttpClient.newHttpClient();
        for (int i = 0; i < 2; i++) { // the second over the connection of the first
            HttpRequest request = HttpRequest.newBuilder(uri)
                .POST(HttpRequest.BodyPublishers.ofString(arguments[1])).build();
            HttpResponse<String> response = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(response.statusCode() + " " + response.body());
        }
        HttpURLConnection connection = (HttpURLConnection) uri.toURL().openConnection();
        connection.setDoOutput(true);
        try (OutputStream out = connection.getOutputStream()) {
            out.write(arguments[1].getBytes("UTF-8"));
        }
        try (InputStream in = connection.getInputStream()) {
            System.out.println(connection.getResponseCode() + " " + new String(in.readAllBytes(), "UTF-8"));
        }
    }
}
