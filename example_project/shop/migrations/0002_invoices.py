from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("shop", "0001_initial")]

    operations = [
        migrations.AddField(
            model_name="ticket",
            name="invoice",
            field=models.CharField(blank=True, help_text="The payment service's number for it.", max_length=40),
        ),
    ]
