import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import org.apache.spark.sql.Dataset;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.SparkSession;

/**
 * SQL in, Parquet out. Each line of standard input is a folder, a tab and a statement; its result is written to the folder, which
 * must not be there. Each is answered by a line of standard output: "ok", or "error" and the first lines of what went wrong.
 */
public class SparkShell {
  private static final PrintStream ANSWERS = System.out;

  public static void main(String[] arguments) throws Exception {
    System.setOut(System.err); // Delta itself prints there
    SparkSession spark = SparkSession.builder().getOrCreate();
    BufferedReader input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    say("ready");
    for (String line = input.readLine(); line != null; line = input.readLine()) {
      String[] parts = line.split("\t", 2);
      try {
        Dataset<Row> found = spark.sql(parts[1]);
        if (found.columns().length > 0) {
          found.coalesce(1).write().parquet(parts[0]);
        }
        say("ok");
      } catch (Throwable error) {
        String text = error.getClass().getSimpleName() + ": " + error.getMessage();
        for (Throwable cause = error.getCause(); cause != null; cause = cause.getCause()) {
          text += " | " + cause.getClass().getSimpleName() + ": " + cause.getMessage();
        }
        say("error " + text.replaceAll("\\s+", " "));
      }
    }
    spark.stop();
  }

  private static void say(String line) {
    ANSWERS.println(line);
    ANSWERS.flush();
  }
}
