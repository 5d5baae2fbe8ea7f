from django.db import migrations, models

import django_cluster_lock.fences.models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Fence",
            fields=[
                (
                    "digest",
                    django_cluster_lock.fences.models.DigestField(
                        max_length=32, primary_key=True, serialize=False, verbose_name="digest"
                    ),
                ),
                ("name", models.TextField(verbose_name="name")),
                ("fence", models.BigIntegerField(verbose_name="fence")),
                ("token", models.BinaryField(verbose_name="token")),
                ("updated_at", models.DateTimeField(verbose_name="updated at")),
            ],
            options={
                "verbose_name": "fence",
                "verbose_name_plural": "fences",
                "db_table": "cluster_lock_fence",
            },
        ),
    ]
